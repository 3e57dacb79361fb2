import torch
def pick_device(name): return torch.device("cpu" if name=="auto" else name)
