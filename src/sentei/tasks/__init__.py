"""What networks are for: classes of images, objects in them, values of pixels."""
