"""Pure tensor maths shared by training distances and evaluation metrics; knows nothing of either."""
