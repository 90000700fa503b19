-- Takes up to so many due lanes per channel, longest-waiting first, each with a new fence and its first task running.
-- Where nothing is ready it writes nothing.
local holder, takes_suspects, deaths = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])
local claim_ms, tasks_per_claim = tonumber(ARGV[4]), tonumber(ARGV[5])
local deaths_suspect, deaths_max = tonumber(ARGV[6]), tonumber(ARGV[7])
local places = {}
for i = 8, #ARGV, 2 do places[ARGV[i]] = tonumber(ARGV[i + 1]) end

-- A few more than there is room for: some turn out not to be due.
local function ready_lanes()
  local found = {}
  for channel, room in pairs(places) do
    local lanes = call('ZRANGEBYSCORE', READY .. channel, '-inf', now, 'WITHSCORES', 'LIMIT', 0, room * 2 + 10)
    for i = 1, #lanes, 2 do
      found[#found + 1] = { lane = lanes[i], channel = channel, at = tonumber(lanes[i + 1]) }
    end
  end
  table.sort(found, function(a, b) return a.at < b.at or (a.at == b.at and a.lane < b.lane) end)
  return found
end

-- Counted when the next worker claims, not when this one starts: only a task left running by a claim that was never
-- settled means that its process died, and a message that kills must not run for ever.
local function take_from_the_lost(lane)
  local id = call('HGET', RUNNING, lane)
  local task = id and load(id)
  if not task then return end
  -- Whoever was taken for dead has lost the lane, also when nobody gets it now.
  free(lane)
  local died = tonumber(task.deaths) + deaths
  set_status(task, 'pending', { deaths = died, updated = now })
  if deaths > 0 and died >= deaths_max then
    suspend(task, 'poison', string.format('the worker process died %d times while running it', died))
  end
end

-- The lane's first task if it is due; otherwise the hint that it is, is corrected.
local function due_head(lane, channel)
  take_from_the_lost(lane)
  local head = head_of(lane)
  if head and tonumber(head.due) <= now and not is_owed(lane) then return head end
  let_go(lane, channel)
end

local function start(found, head, tasks)
  local fence = next_fence()
  call('HSET', LANE .. found.lane, 'channel', found.channel, 'holder', holder, 'fence', fence)
  return { found.lane, found.channel, fence, tasks - 1, run(head, claim_ms) }
end

-- Half of a chat may be missing still.
if call('EXISTS', LIFE) == 0 then return { 0, {} } end
local found = ready_lanes()
if #found > 0 then even_when_full() end
local claims, suspects_waiting = {}, 0
for _, one in ipairs(found) do
  local head = places[one.channel] > 0 and due_head(one.lane, one.channel)
  if head and tonumber(head.deaths) < deaths_suspect then
    places[one.channel] = places[one.channel] - 1
    claims[#claims + 1] = start(one, head, tasks_per_claim)
  elseif head and takes_suspects and #claims == 0 then
    -- It was running in several crashes. It gets a process to itself, so that if it kills once more nobody
    -- else's message is counted with it.
    return { 0, { start(one, head, 1) } }
  elseif head then
    suspects_waiting = 1
  end
end
return { suspects_waiting, claims }
