-- Runs a finished or suspended task again as a later generation, from the start. Where Redis has been emptied, and what
-- it had is still being brought back, the task finds its key here. A full Redis takes it where it stood suspended.
local key, body, head, raw = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local accepted, receipt_ends, generation = ARGV[5], tonumber(ARGV[6]), ARGV[7]
local task = named(8)
local known = load(task.id)
if known and (known.status ~= 'suspended' or tonumber(known.generation) >= tonumber(generation)) then return 0 end
if known then forget(known) end
remember_again(key, task, body, accepted, receipt_ends)
task.generation, task.due, task.body = generation, now, body
create(task, head, raw, 'pending')
announce(task, now)
return 1
