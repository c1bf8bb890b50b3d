"""How many entries each dimension keeps: what AllocateWidths chooses from and how."""
