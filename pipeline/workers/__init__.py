"""Ways to get units done: in this process, in processes of this machine, on a Ray cluster. `executors.py` chooses."""
