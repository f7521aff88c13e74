"""Routing to experts, their grouped linear layers and losses attached to activations."""
