"""The trainer process: a child of a pool process, alone with torch and ART."""
