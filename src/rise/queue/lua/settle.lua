-- Ends the work on a task and starts the next of its lane, or lets the lane go. A stale fence changes nothing, and a
-- task that is not being processed is left as it is: so a repeated settle finds nothing more to do.
local lane, fence, tasks_left = ARGV[1], ARGV[2], tonumber(ARGV[3])
local claim_ms, deaths_suspect, tombstone_ms = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local id, settlement, first, second, third, fourth = ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12]

local settle = {
  Finished = function(task)
    bury(task, tombstone_ms)
  end,
  Replying = function(task)
    if task.answered == task.generation then return bury(task, tombstone_ms) end
    set_status(task, 'replying', { error = false, updated = now })
  end,
  RetryIn = function(task)
    local fields = { due = now + first, error = third, updated = now, failing = false, begun = fourth == '1' and 1 }
    if second == '1' then fields.attempts, fields.failing = task.attempts + 1, task.failing or now end
    set_status(task, 'pending', fields)
  end,
  Anew = function(task)
    set_status(task, 'pending', { generation = first, updated = now })
  end,
  Suspend = function(task)
    suspend(task, first, second)
  end,
}

local holder, held, channel = held_by(lane)
if not holder or held ~= fence then return 'lost' end
even_when_full()
local task = load(id)
if task and task.status == 'processing' then settle[settlement](task) end
-- Whoever settles runs nothing else of the lane: what still is there as running was started by a settle whose answer
-- was lost, or is what the store remembers that has forgotten the rest.
local other = call('HGET', RUNNING, lane)
other = other and other ~= id and load(other)
if other then set_status(other, 'pending', {}) end
local following = first_task(lane)
-- Without a life half of the chat may be missing, which a restarted Redis has lost and the claim has outlived.
local may_go_on = call('EXISTS', LIFE) == 1 and not is_owed(lane) and tasks_left > 0
if not may_go_on or not following or tonumber(following.due) > now or tonumber(following.deaths) >= deaths_suspect then
  let_go(lane, channel)
  return false
end
return run(following, claim_ms)
