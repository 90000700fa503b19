-- The ledger says finished. A task that its worker has yet to settle stays until then.
local task = load(ARGV[1])
if not task or task.generation ~= ARGV[2] then return 0 end
even_when_full()
if task.status == 'replying' then bury(task, ARGV[3]) else change(task, { answered = task.generation }) end
return 1
