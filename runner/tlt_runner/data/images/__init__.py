"""An image file's pixels: headers read without decoding, JPEG and PNG checked, images placed on the input."""
