-- All that the process owed these lanes is here.
for i = 2, #ARGV do call('ZREM', OWED .. ARGV[i], ARGV[1]) end
