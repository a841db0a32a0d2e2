"""The pure middle: values and the decision, no I/O, no clock."""
