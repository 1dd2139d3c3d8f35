"""What people do to a saga: replay it, cancel it, and see first what a replay would do."""
