"""The half that decides: algorithms, models, data formats, recipes, run folders and the command line.

Nothing in here imports Ray. Read `schema`, then `runtime`, then `recipes/longest.py`, then `recipes/iterselect.py`;
`local` runs it in one process, and the package `actors` runs the same callables on a cluster.
"""
