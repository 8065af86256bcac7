"""Speed, memory and accuracy of fastdiv: the ASV suite, the gates, the peers and the site."""
