"""All layers and functions of torch, inside a network: products are right, or refused."""
