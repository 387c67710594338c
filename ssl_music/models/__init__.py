"""Front end, backbone and heads."""
