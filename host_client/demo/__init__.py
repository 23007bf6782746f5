"""The files of both demos: the scripts of the model, and the program that the agent repairs."""
