-- Runs a finished or suspended task again as a later generation, from the start.
local task = named(1)
local generation, head, raw, body = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
local known = load(task.id)
if known and (known.status ~= 'suspended' or tonumber(known.generation) >= tonumber(generation)) then return 0 end
if known then forget(known) end
task.generation, task.due, task.body = generation, now, body
create(task, head, raw, 'pending')
announce(task, now)
return 1
