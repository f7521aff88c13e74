"""This process of a run.

device     its GPU
signals    those that ask it to stop
heartbeat  its signs of life for a supervisor
"""
