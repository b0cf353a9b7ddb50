"""How what a task learns reaches its resource's status: an accumulator, and two ways out of the process."""
