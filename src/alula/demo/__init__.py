"""The built-in example: imaginary birds, the small network that knows them, and the whole way on both."""
