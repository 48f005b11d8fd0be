"""How our commands run as processes.

options    a command line made from dataclasses
commands   exit codes, the log, stopping by a signal
lock       one miner and one trainer at a time in a run directory
progress   what one sees while something runs
beam       running a graph: Beam's options, its workers' errors, what they counted
engines    what an engine needs to be there, and an end of the job when we are stopped
"""
