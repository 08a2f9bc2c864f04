"""Stage 4, evaluation: is the new step better than what serves?"""
