"""The command line. Modules here import torch and lightning only when a command needs them."""
