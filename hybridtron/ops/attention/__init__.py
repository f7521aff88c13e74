"""Softmax attention, its sinks and rotary position embedding."""
