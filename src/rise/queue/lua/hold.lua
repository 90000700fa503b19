-- A reply of unknown fate suspends its task, if it is still that run's.
local task = load(ARGV[1])
if not task or task.generation ~= ARGV[2] or task.status ~= 'replying' then return 0 end
even_when_full()
suspend(task, ARGV[3], ARGV[4])
return 1
