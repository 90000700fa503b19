-- Suspended tasks become pending, whole lanes at a time, and their tries start over.
local tasks, resumed = meant_suspended(tonumber(ARGV[2])), {}
if #tasks > 0 then even_when_full() end
for _, task in ipairs(tasks) do
  set_status(task, 'pending', { attempts = 0, deaths = 0, failing = false, due = now, updated = now })
  announce(task, now)
  resumed[#resumed + 1] = task.id
end
return resumed
