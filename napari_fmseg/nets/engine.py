import ctypes
import torch
def pick_device(name): return torch.device("cpu" if name=="auto" else name)
def training_precision(device, name): return "float32" if name=="auto" else name
def keep_pages():
    L=ctypes.CDLL(None); L.mallopt(-8,1); L.mallopt(-4,0); L.mallopt(-1,2**31-1)
