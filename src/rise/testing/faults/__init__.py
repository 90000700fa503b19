"""What goes wrong on purpose, in real processes, on real links and disks, and what came of it: `rise drill`."""
