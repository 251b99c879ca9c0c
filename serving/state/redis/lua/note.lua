-- Write a value for those that lead later.
-- KEYS: holder, key. ARGV: TOKEN:OWNER, value. Returns 1; 0: another process has the lead, or none.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2])
return 1
