-- The next remembered delivery keys: each with what is known of it and how often it came again.
local keys = call('ZRANGEBYLEX', RECEIPT_KEYS, ARGV[1] == '' and '-' or '(' .. ARGV[1], '+', 'LIMIT', 0, ARGV[2])
if #keys == 0 then return {} end
return { keys, call('HMGET', RECEIPTS, unpack(keys)), call('HMGET', RECEIPT_AGAIN, unpack(keys)) }
