-- Claims the delivery key and writes the task, both or neither. What is known is counted, and named.
-- Its first write is one that a full Redis refuses, so that nothing of it is done then.
local key, body, head, raw, receipt_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local deadline, due, suspended_for, error = ARGV[6], ARGV[7], ARGV[8], ARGV[17]
local task = named(9)

local function duplicate()
  even_when_full() -- it is kept already, and its sender must hear so
  call('HINCRBY', RECEIPT_AGAIN, key, 1)
  count('duplicates', 1)
  local id, checksum = call('HGET', RECEIPTS, key):match('^(%S+) (%S*)')
  return { id, 0, checksum == body and 1 or 0, 0, 0 }
end

-- Whether it came after one that the platform dates later, and whether that one had already been started. What is
-- planned stands by its moment, in whatever order it came.
local function join_lane()
  local known = call('HMGET', LANE .. task.lane, 'newest', 'started')
  local is_planned = task.due > now
  local out_of_order = not is_planned and known[1] and task.order < known[1]
  local late = not is_planned and known[2] and task.order < known[2]
  if out_of_order then count('out_of_order', 1) elseif not is_planned then
    call('HSET', LANE .. task.lane, 'newest', task.order)
  end
  announce(task, math.max(now, task.due))
  return out_of_order and 1 or 0, late and 1 or 0
end

if call('HEXISTS', RECEIPTS, key) == 1 then return duplicate() end
local outlived = call('HGET', TASK .. task.id, 'body')
remember(key, task, outlived or body, string.format('%.0f', now), now + receipt_ms)
-- The task is still there although its key had been forgotten: suspended for longer than keys are kept.
if outlived then return duplicate() end

task.body, task.generation, task.error = body, 0, error
task.due = due ~= '' and math.max(now, tonumber(due)) or now
task.deadline = deadline ~= '' and deadline
task.reason = suspended_for ~= '' and suspended_for
create(task, head, raw, task.reason and 'suspended' or 'pending')
if task.reason then return { task.id, 1, 1, 0, 0 } end
return { task.id, 1, 1, join_lane() }
