"""What administrators use: users, doctor, what runs and what is left over."""
