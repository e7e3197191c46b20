"""The modes of the command line, a module each: KEYS, EXAMPLES, run(options). Heavy imports stay inside run."""
