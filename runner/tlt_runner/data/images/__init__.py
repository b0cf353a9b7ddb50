"""Image files: headers read without decoding, JPEG and PNG checked, pixels brought to the network's size."""
