"""NRRD and MetaImage: headers checked by our own code, voxels read by ITK."""
