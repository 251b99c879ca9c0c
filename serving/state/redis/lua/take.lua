-- Take the lead where nobody has it.
-- KEYS: holder, fence. ARGV: owner, lease in milliseconds. Returns the new token; 0: another process has the lead.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token .. ':' .. ARGV[1], 'PX', ARGV[2])
return token
