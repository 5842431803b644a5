"""The progress bar: there when asked for, silent otherwise."""

from toy import make_trainer

from hooks import ProgressHook


def test_bar_with_its_values(tmp_path, capsys):
    make_trainer(tmp_path, hooks=[ProgressHook(every_steps=1, enabled=True)]).train()
    shown = capsys.readouterr().err
    assert "epoch 1/2" in shown and "epoch 2/2" in shown and "6/6" in shown
    assert all(name in shown for name in ("loss ", "lr ", "img/s ", "wait ", "left "))


def test_quiet_where_there_is_no_terminal(tmp_path, capsys):
    make_trainer(tmp_path, hooks=[ProgressHook()]).train()
    assert capsys.readouterr().err == ""
