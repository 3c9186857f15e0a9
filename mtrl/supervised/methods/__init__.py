"""Methods that change more than the combined gradient, one a file."""
