"""Published networks that others are compared with: DeepMedic, VoxResNet, AnatomyNet, H-DenseUNet."""
