-- Takes up to so many due lanes per channel, longest-waiting first, each with a new fence and its first task running.
-- Where there is not room for all, most of it is for lanes in which somebody waits.
-- Where nothing is ready it writes nothing.
local holder, takes_suspects, deaths = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])
local claim_ms, tasks_per_claim = tonumber(ARGV[4]), tonumber(ARGV[5])
local deaths_suspect, deaths_max = tonumber(ARGV[6]), tonumber(ARGV[7])
local awaited_turns = tonumber(ARGV[8])
local places = {}
for i = 9, #ARGV, 2 do places[ARGV[i]] = tonumber(ARGV[i + 1]) end

-- A few more than there is room for: some turn out not to be due.
local function first_of(key, channel, room)
  return call('ZRANGEBYSCORE', key .. channel, '-inf', now, 'LIMIT', 0, room * 2 + 10)
end

-- Those of them in which somebody waits. READY alone says what may be claimed, and former versions keep only that.
local function awaited_of(channel, room)
  while true do
    local lanes, stale = first_of(AWAITED, channel, room), 0
    for _, lane in ipairs(lanes) do
      local at = call('ZSCORE', READY .. channel, lane)
      if not at then
        call('ZREM', AWAITED .. channel, lane)
      elseif tonumber(at) > now then
        call('ZADD', AWAITED .. channel, at, lane)
      end
      if not at or tonumber(at) > now then stale = stale + 1 end
    end
    if stale == 0 then return lanes end
  end
end

-- Offers each once: of so many taken one has simply waited longest. As `Turns` does, see there.
local function turns_of(channel, room)
  local longest_waiting = first_of(READY, channel, room)
  if #longest_waiting > 0 then even_when_full() end
  local is_contested = #longest_waiting > room
  local lists = { is_contested and awaited_of(channel, room) or {}, longest_waiting }
  local before = is_contested and tonumber(call('GET', TURNS .. channel) or 0) or 0
  local turn = before
  local at, offered, is_in_turn = { 1, 1 }, {}, false

  local function next_of(list)
    local lanes = lists[list]
    while lanes[at[list]] and offered[lanes[at[list]]] do at[list] = at[list] + 1 end
    return lanes[at[list]]
  end

  return {
    next = function()
      local in_turn = turn % (awaited_turns + 1) < awaited_turns and 1 or 2
      local lane = next_of(in_turn)
      is_in_turn = lane ~= nil
      lane = lane or next_of(3 - in_turn)
      if lane then offered[lane] = true end
      return lane
    end,
    took = function()
      if is_in_turn then turn = turn + 1 end
    end,
    remember = function()
      if is_contested and turn ~= before then call('SET', TURNS .. channel, turn) end
    end,
  }
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
  if died > 0 then call('SADD', DIED, lane) end
  if deaths > 0 and died >= deaths_max then
    suspend(task, 'poison', string.format('the worker process died %d times while running it', died))
  end
end

-- The lane's first task if it is due; otherwise the hint that it is, is corrected.
local function first_due(lane, channel)
  take_from_the_lost(lane)
  local first = first_task(lane)
  if first and tonumber(first.due) <= now and not is_owed(lane) then return first end
  let_go(lane, channel)
end

local function start(lane, channel, first, tasks)
  local fence = next_fence()
  call('HSET', LANE .. lane, 'channel', channel, 'holder', holder, 'fence', fence)
  return { lane, channel, fence, tasks - 1, run(first, claim_ms) }
end

-- What was running in several crashes gets a process to itself, so that if it kills once more nobody else's message is
-- counted with it.
local function suspect_alone()
  local waiting = {}
  for _, lane in ipairs(call('SMEMBERS', DIED)) do
    local channel = call('HGET', LANE .. lane, 'channel')
    local at = channel and tonumber(call('ZSCORE', READY .. channel, lane))
    if not at then
      call('SREM', DIED, lane)
    elseif at <= now and (places[channel] or 0) > 0 then
      waiting[#waiting + 1] = { lane = lane, channel = channel, at = at }
    end
  end
  table.sort(waiting, function(a, b) return a.at < b.at or (a.at == b.at and a.lane < b.lane) end)
  for _, one in ipairs(waiting) do
    even_when_full()
    local first = first_due(one.lane, one.channel)
    if first and tonumber(first.deaths) >= deaths_suspect then return { start(one.lane, one.channel, first, 1) } end
  end
end

-- Half of a chat may be missing still.
if call('EXISTS', LIFE) == 0 then return { 0, {} } end

local found = takes_suspects and suspect_alone()
if found then return { 0, found } end
local claims, suspects_waiting = {}, 0
for channel in pairs(places) do
  local turns = turns_of(channel, places[channel])
  while places[channel] > 0 do
    local lane = turns.next()
    if not lane then break end
    local first = first_due(lane, channel)
    if first and tonumber(first.deaths) < deaths_suspect then
      turns.took()
      places[channel] = places[channel] - 1
      claims[#claims + 1] = start(lane, channel, first, tasks_per_claim)
    elseif first then
      suspects_waiting = 1
      call('SADD', DIED, lane)  -- by a former version
    end
  end
  turns.remember()
end
return { suspects_waiting, claims }
