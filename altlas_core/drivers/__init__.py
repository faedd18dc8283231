"""What turns decisions into deeds: virtual time and real time drive the same distributor."""
