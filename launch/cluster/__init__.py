"""Starting the trainer on one or many machines."""
