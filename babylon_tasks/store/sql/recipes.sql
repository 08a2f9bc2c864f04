-- Recipes: everything with which a step was made.

-- read_recipe --
SELECT recipe FROM rl.steps WHERE model_name = %(model_name)s AND step = %(step)s
