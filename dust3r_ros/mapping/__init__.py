"""The fused map: what the keyframes' points become, and the files it is written to."""
