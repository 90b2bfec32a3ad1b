"""Commands of the command line that have more to say than `irdm.cli` has room for: one file each."""
