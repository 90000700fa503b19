-- Brings back a task that another copy holds, unless it is open as this generation or a later one, or known to be
-- finished. A full Redis refuses its first write, as for any that comes in, unless it takes a former generation's place.
local key, body, head, raw = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local accepted, receipt_ends, deadline, due = ARGV[5], tonumber(ARGV[6]), ARGV[7], ARGV[8]
local suspended_for, generation, error = ARGV[9], ARGV[10], ARGV[19]
local task = named(11)

local function is_here(known)
  return known and tonumber(known) >= tonumber(generation)
end

local known = load(task.id)
if is_here(known and known.generation) then return 0 end
-- Whose key is not known, although its time is not over, is another message than the one that finished under that key.
local is_another = receipt_ends > now and call('HEXISTS', RECEIPTS, key) == 0
if not is_another and is_here(call('GET', FINISHED .. task.id)) then return 0 end
if known then forget(known) end
remember_again(key, task, body, accepted, receipt_ends)
task.body, task.generation, task.error, task.begun = body, generation, error, 1
task.due = due ~= '' and math.max(now, tonumber(due)) or now
task.deadline = deadline ~= '' and deadline
task.reason = suspended_for ~= '' and suspended_for
create(task, head, raw, task.reason and 'suspended' or 'pending')
if not task.reason then
  -- Accepted earlier, and a later one of its lane was started meanwhile: that break of order is on record.
  local started = call('HGET', LANE .. task.lane, 'started')
  if task.due <= now then
    if started and task.order < started then count('out_of_order', 1) end
    latest(task.lane, 'newest', task.order)
  end
  announce(task, math.max(now, task.due))
end
return 1
