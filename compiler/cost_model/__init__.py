"""What widths cost: parameters, bytes and MACs counted, times measured on the device."""
