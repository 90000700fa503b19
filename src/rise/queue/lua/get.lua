local task = load(ARGV[1])
return task and whole(task)
