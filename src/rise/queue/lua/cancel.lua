-- Takes a task out of its lane for good; a claim on it is void at once. Answers with the task as it was.
local task = load(ARGV[1])
if not task or (ARGV[3] ~= '' and task.generation ~= ARGV[3]) then return false end
local before, was = whole(task), task.status
even_when_full()
bury(task, ARGV[2])
if was == 'processing' then
  free(task.lane)
  set_ready(task.lane, task.channel, now)
elseif was == 'pending' then
  -- It may have been the lane's first, which waits for its retry, and the lane with it.
  announce(task, now)
end
return before
