"""How flat a minimum is: traces, the largest eigenvalue and sharpness of a true training loss. No Ultralytics."""
