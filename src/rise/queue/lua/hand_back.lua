-- What a holder claimed is as if it had never been claimed, but for the fences named.
local holder, kept, lanes = ARGV[1], {}, 0
for i = 2, #ARGV do kept[ARGV[i]] = true end
even_when_full()
for _, lane in ipairs(call('ZRANGE', CLAIMS, 0, -1)) do
  local held, fence, channel = held_by(lane)
  if held == holder and not kept[fence] then
    local id = call('HGET', RUNNING, lane)
    local task = id and load(id)
    if task then set_status(task, 'pending', {}) end
    free(lane)
    set_ready(lane, channel, now)
    lanes = lanes + 1
  end
end
return lanes
